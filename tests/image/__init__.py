"""The images of docker/ and the script that builds them: real builds, real containers, a real registry."""
