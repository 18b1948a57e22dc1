"""The paper's claims, measured on toy webs whose truth is known."""
