"""Other processors on one machine: libraries are told by their environment variables to compute as on others.

python -m tests.processors                       # every setting that changes bits here, with all tests of bits
python -m tests.processors tests/decoding/test_invariance.py -k wide
"""
