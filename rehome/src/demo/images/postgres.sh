#!/bin/sh
# Starts PostgreSQL on the volume. A volume with nothing in it gets a new database; one that
# holds something else than a database is refused, because data that is absent is an error.
set -eu
volume=/var/lib/postgresql/data
data=$volume/pg
for bin in /usr/lib/postgresql/*/bin; do PATH=$bin:$PATH; done
export PATH

chown postgres:postgres "$volume"
if [ ! -e "$data/PG_VERSION" ]; then
	# What an earlier start began and did not finish was never served.
	rm -rf "$data.new"
	if [ -n "$(ls -A "$volume")" ]; then
		echo "$volume holds something, but no database" >&2
		exit 1
	fi
	su -s /bin/sh postgres -c "initdb --pgdata=$data.new --auth=trust --encoding=UTF8 --locale=C.UTF-8 >/dev/null"
	echo 'host all all all trust' >>"$data.new/pg_hba.conf"
	su -s /bin/sh postgres -c "postgres --single -j -D $data.new postgres </etc/demo/schema.sql >/dev/null"
	sync
	mv "$data.new" "$data"
fi

# A stop must not wait for clients to leave: that is SIGINT to PostgreSQL, not SIGTERM.
su -s /bin/sh postgres -c "exec postgres -D $data -c listen_addresses='*' -c max_connections=400 -c unix_socket_directories=/tmp" &
server=$!
trap 'kill -INT $server' TERM INT
status=0
wait $server || status=$?
while kill -0 $server 2>/dev/null; do
	status=0
	wait $server || status=$?
done
exit $status
