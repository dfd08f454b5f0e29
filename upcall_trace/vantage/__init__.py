"""Where traffic is taken from: proxy, recorder, vsockmon interface; what a host allows."""
