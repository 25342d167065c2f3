#!/bin/sh
# Receives log lines on TCP 5000 and writes each into the database that the link DB leads to.
# While the database does not answer, lines wait in a queue that spills to disk.
set -eu
: "${DB_PORT_5432_TCP_ADDR:?a link with the alias DB and the port 5432 is needed}"
mkdir -p /var/spool/rsyslog
cat >/etc/rsyslog.conf <<CONF
# Without a name server the first line of every sender would wait for it.
global(workDirectory="/var/spool/rsyslog" net.enableDNS="off")
module(load="imtcp")
module(load="ompgsql")
template(name="row" type="list" option.stdsql="on") {
  constant(value="INSERT INTO log (sender, message) VALUES ('")
  property(name="fromhost-ip")
  constant(value="', '")
  property(name="rawmsg")
  constant(value="')")
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
