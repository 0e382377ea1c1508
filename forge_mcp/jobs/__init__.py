"""Durable jobs on DBOS: queue, worker, the stages in child processes, events."""
