"""Tables for people and programs: columns, and the tables that are made of them."""
