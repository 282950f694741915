"""One file for each exercise, named like the exercise. Each holds one Exercise, EXERCISE."""
