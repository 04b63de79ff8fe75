"""A table of three small stages, real in everything but size: for tests of the spine."""
