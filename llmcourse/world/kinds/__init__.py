"""The kinds of text the town writes: facts and questions, prose, tasks."""
