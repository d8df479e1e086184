"""The paper's table for one model: demonstrations, trainings, evaluations, one page."""
