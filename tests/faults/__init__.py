"""Faults, each with an attempt that survives it or fails: what the tests try a few times and the record many times.

An attempt takes a random source and a `World`, and raises when anything was lost. Runs and saves are real ones, in processes
of their own that are forked from one with everything imported; signals are real signals, disks are real file systems.
"""
