"""The method inside other trainers: verl."""
