#!/bin/sh
# Receives log lines on TCP 5000 and writes each into the database that the link DB leads to.
# While the database does not answer, lines wait in a queue that spills to disk.
#
# rsyslog wraps a batch of lines into one transaction, and when the connection breaks inside of it,
# it sends only the rest of the batch again: the lines before are lost. So every line is committed
# by itself. A line whose answer was lost is sent twice; its number makes the second one void.
# What remains is a database that refuses new connections, as one that recovers from a crash does:
# lines that rsyslog tries just then are lost. A move never shows it one, because it parks them.
set -eu
: "${DB_PORT_5432_TCP_ADDR:?a link with the alias DB and the port 5432 is needed}"
mkdir -p /var/spool/rsyslog
cat >/etc/rsyslog.conf <<CONF
# Without a name server the first line of every sender would wait for it.
global(workDirectory="/var/spool/rsyslog" net.enableDNS="off")
module(load="imtcp")
module(load="ompgsql")
template(name="row" type="list" option.stdsql="on") {
  constant(value="INSERT INTO log (delivery, sender, message) VALUES ('")
  property(name="uuid")
  constant(value="', '")
  property(name="fromhost-ip")
  constant(value="', '")
  property(name="rawmsg")
  constant(value="') ON CONFLICT (delivery) DO NOTHING; COMMIT; BEGIN")
}
input(type="imtcp" port="5000" ruleset="store")
ruleset(name="store") {
  action(type="ompgsql" template="row"
    server="${DB_PORT_5432_TCP_ADDR}" port="${DB_PORT_5432_TCP_PORT}" user="postgres" db="postgres"
    queue.type="LinkedList" queue.filename="database" queue.maxDiskSpace="1g" queue.saveOnShutdown="on"
    queue.dequeueBatchSize="100" action.resumeRetryCount="-1" action.resumeInterval="1" action.resumeIntervalMax="1")
}
CONF
exec rsyslogd -n -i NONE
