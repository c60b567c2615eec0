"""What people see on the terminal: lines, progress, tables."""
