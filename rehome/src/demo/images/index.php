<?php
// One page: how many log lines the database holds, and a full-text search in them.
// `/count` answers with the bare number, for programs.
function database(): PgSql\Connection {
    $host = getenv('DB_PORT_5432_TCP_ADDR');
    $port = getenv('DB_PORT_5432_TCP_PORT');
    $link = @pg_connect("host=$host port=$port user=postgres dbname=postgres connect_timeout=70");
    if ($link === false) {
        throw new RuntimeException('the database does not answer');
    }
    return $link;
}

function rows(string $sql, array $values = []): array {
    $result = @pg_query_params(database(), $sql, $values);
    if ($result === false) {
        throw new RuntimeException('the database refused the query');
    }
    return pg_fetch_all($result);
}

$text = fn ($value): string => htmlspecialchars((string) $value, ENT_QUOTES);
$query = (string) ($_GET['q'] ?? '');
try {
    $count = rows('SELECT count(*) FROM log')[0]['count'];
    $found = $query === ''
        ? rows('SELECT received, sender, message FROM log ORDER BY id DESC LIMIT 20')
        : rows("SELECT received, sender, message FROM log
                WHERE words @@ plainto_tsquery('simple', $1) ORDER BY id DESC LIMIT 20", [$query]);
} catch (RuntimeException $error) {
    http_response_code(503);
    exit($error->getMessage() . "\n");
}
if (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) === '/count') {
    header('Content-Type: text/plain');
    exit("$count\n");
}
?>
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Log search</title>
<style>
  body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; width: 100%; }
  td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; }
</style>
<h1><?= $text($count) ?> log lines</h1>
<form><input name="q" value="<?= $text($query) ?>" placeholder="words" autofocus> <button>Search</button></form>
<table>
  <tr><th>Received<th>Sender<th>Message
<?php foreach ($found as $row): ?>
  <tr><td><?= $text($row['received']) ?><td><?= $text($row['sender']) ?><td><?= $text($row['message']) ?>

<?php endforeach ?>
</table>
</html>
