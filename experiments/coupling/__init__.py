"""Runs with gates or several tasks: phases, sharing, what an auxiliary task gives to its target."""
