"""The live page: ``guerdon view`` serves the views of the report while training goes on."""
