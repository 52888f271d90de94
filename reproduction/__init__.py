"""The paper's tables from one command: what they hold, what has to run for them, what came out."""
