"""The service: upload pictures of a subject, get it in new scenes. Ray is imported by `deployments` alone."""
