"""The reconfigurable AW–EW datapath (paper §4.2): routing table, assignment, in-flight, REFE."""
