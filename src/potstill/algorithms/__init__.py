"""Methods as values: schedules, losses and recipes, and the named methods made of them."""
