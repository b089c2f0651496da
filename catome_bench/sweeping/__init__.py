"""The paper's tables for any pipeline: what to draw, where the pictures lie, and what is measured of them."""
