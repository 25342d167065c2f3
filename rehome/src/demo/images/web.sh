#!/bin/sh
# Serves the search page. As the first process of a container PHP would not notice SIGTERM, so
# this script stays the first one and ends when it is told to; the kernel ends the rest.
set -eu
for php in /usr/bin/php[0-9]*; do :; done
$php -d extension=pgsql -S 0.0.0.0:80 /srv/index.php &
server=$!
trap 'kill $server' TERM INT
wait $server
