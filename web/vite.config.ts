import { defineConfig } from "vite";

// Relative addresses: the folder works under any path of any static server. "mpa": what is missing is a 404.
export default defineConfig({ appType: "mpa", base: "./", build: { target: "es2022", assetsInlineLimit: 0 } });
