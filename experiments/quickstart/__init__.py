"""The quickstart: four methods from one base model, trained side by side, compared on one page."""
