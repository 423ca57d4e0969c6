"""The policy: from its text to what is in force on this host."""
