"""HTTP: the edge, routing, requests, responses, parameters, bodies, access, and the OpenAPI document."""
