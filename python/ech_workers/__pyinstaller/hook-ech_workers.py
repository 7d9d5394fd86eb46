"""Each command is imported by name when it is used, which PyInstaller cannot see; the status page and the Worker are files."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("ech_workers", filter=lambda name: "__pyinstaller" not in name)
datas = collect_data_files("ech_workers", includes=["status/*.html", "worker/template/**"])
