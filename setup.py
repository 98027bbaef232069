"Takes the dependencies and the command from settings.ini, so that they are written once."
from configparser import ConfigParser

from setuptools import setup

config = ConfigParser()
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
setup(
    version=settings["version"],
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split(),
                    "jax": settings["jax_requirements"].split(),
                    "onnx": settings["onnx_requirements"].split()},
    entry_points={"console_scripts": [settings["console_scripts"]],
                  "nbdev": [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"]},
)
