# Sluicegate's image: production dependencies and sources, which Node runs as they are. Runs as a user without rights.
FROM node:24-bookworm-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
# The tokenizer comes in four forms, of which only esm is imported: the others are a third of all dependencies.
RUN npm ci --omit=dev --ignore-scripts && cd node_modules/gpt-tokenizer && rm -r cjs data src

FROM node:24-bookworm-slim
# PORT and not SLUICEGATE_LISTEN, so that a hosting platform's own PORT takes its place.
ENV NODE_ENV=production \
    PORT=8080 \
    SLUICEGATE_OPS_LISTEN=0.0.0.0:9464
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY package.json LICENSE ./
COPY src src
COPY config config
USER 65532:65532
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
# What cannot be fetched ends Node with 1 as well, and its reason is in the health log.
HEALTHCHECK --interval=5s --timeout=2s --start-period=5s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:9464/readyz').then(({ ok }) => process.exit(ok ? 0 : 1))"]
# A small young generation: what new calls leave behind is gone through more often, and for less long. One helper thread for V8: more of
# them compete with the streams where there is one core (docs/performance.md).
ENTRYPOINT ["node", "--max-semi-space-size=8", "--v8-pool-size=1", "src/main.ts"]
