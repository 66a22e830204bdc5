"""Validated settings: recipes, languages, budgets and plugins, checked before anything is computed."""
