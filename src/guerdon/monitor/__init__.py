"""Sees everything, changes nothing: metrics and alarms, progress, loggers, the report."""
