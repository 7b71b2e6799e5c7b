"""The login table: which keys there are in Redis (`keys`), what stands in them (`records`), and what administrators
do with it (`login_table`, `listing`, `transfer`, `usage`). Its format is a public interface: pbs-policy-table(5).
"""
