"""What is asked for, as frozen data: one run's recipe, and a paper's tables of them."""
