"""How long an update, acting and replay take."""
