"""Who may call: roles, keys, and the file that they are kept in."""
