"""Small tasks: what is learned, and in how many steps."""
