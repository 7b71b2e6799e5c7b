"""The demonstration: a login and a relay attempt on private instances of real daemons."""
