"""Fuzzers: hostile input in any number, as scripts and, with a small number, as tests."""
