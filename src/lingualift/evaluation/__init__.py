"""Reading answers off a model, and scoring them."""
