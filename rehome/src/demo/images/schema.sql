CREATE TABLE log (
    id bigserial PRIMARY KEY,
    delivery uuid UNIQUE,
    received timestamptz NOT NULL DEFAULT now(),
    sender text,
    message text NOT NULL,
    words tsvector GENERATED ALWAYS AS (to_tsvector('simple', message)) STORED
);

CREATE INDEX log_words ON log USING gin (words);

