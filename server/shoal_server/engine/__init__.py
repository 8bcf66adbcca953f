"""The engine process: takes calls from fronts, runs models, answers."""
