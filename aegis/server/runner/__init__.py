"""What runs the server: granian, its workers, the address that it listens on."""
