"""Figures as data: what each shows, taken from records alone, before anything is drawn."""
