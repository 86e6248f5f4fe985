"""How alerts come in: a unix socket, HTTP, a followed file, standard input."""
