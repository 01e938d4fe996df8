"""Tests against real servers, and what starts them."""
