"""Everything around a RUN: check, scan, write, report, compare, gate."""
