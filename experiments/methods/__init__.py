"""The page of methods: the table, and the command that writes it."""
