// Debezium: see README.md.

import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

final class Debezium {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (var file = Files.newBufferedReader(Path.of(arguments[0]))) {
            properties.load(file);
        }
        DebeziumEngine<?> engine = DebeziumEngine.create(Json.class)
                .using(properties)
                .using((success, message, error) -> {
                    if (!success) {
                        System.err.println("the engine has failed: " + message + ": " + error);
                        System.err.flush();
                        Runtime.getRuntime().halt(1);
                    }
                })
                .notifying(event -> System.out.println(event.value()))
                .build();
        ExecutorService executor = Executors.newSingleThreadExecutor();
        executor.execute(engine);
        while (System.in.read() >= 0) {}
        engine.close();
        executor.shutdown();
    }
}
