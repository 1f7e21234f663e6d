"""The audit log: who did what with which data and models; nobody can change it unseen."""
