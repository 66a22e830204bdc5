"""Validated settings: recipes, languages, budgets and plugins, resolved before anything is computed."""
