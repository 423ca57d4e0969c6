"""What is answered on each route."""
