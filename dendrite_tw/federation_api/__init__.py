"""The federation component: this server among others."""
